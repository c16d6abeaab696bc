# 分割、显示状态和关键图像。序列描述连同提示最多 64 个字符。
segmentation-series = AI 分割 - { $notice }
segmentation-description = AI 分割。{ $notice }
# 密度不是征象。
segment-density = 表示体素的密度，而不是其性质：其中包括血管和气道壁。

outlines-series = AI 肺部轮廓 - { $notice }
outlines-text = AI 肺部轮廓。{ $notice }

key-objects-series = AI 关键图像 - { $notice }
key-objects-output = 类别 { $class } 的模型输出：{ $output }，达到或高于操作阈值 { $threshold }
key-objects-rule = 网络勾画为 { $class } 的区域满足该模型包的规则：{ $rule }
key-objects-text = { $findings }。{ $notice }
