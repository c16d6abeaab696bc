# 报告中的文字。数值已带单位。

not-for-diagnostic-use = 不可用于诊断
report-series = AI 结果 - 不可用于诊断
