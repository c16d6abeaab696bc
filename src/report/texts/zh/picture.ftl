# 图像中的文字。数值已带单位。

picture-untrained = 未经训练的测试权重 - 无临床意义 (UNTRAINED TEST WEIGHTS - NO CLINICAL MEANING)

# X 线片，图像上方。
picture-title = AI 热图 · { $class } { $output } · { $purpose }
picture-no-class = 目标类别
picture-no-output = 无输出
picture-model-output = 模型输出，{ $calibration }，{ $position }（{ $threshold }）。
picture-in-grey-zone = 输出位于灰区（{ $zone }）：不作任何判定
picture-not-localised = 无定位：输出低于阈值 { $threshold }
picture-no-map = 无热图：给出结果的网络均未提供热图
picture-no-region = 无定位：没有区域使输出升高
picture-heat-elsewhere = 热量的 { $share } 位于肺内，不足一半：输出可能以其他内容为依据
picture-on-demand = 按需生成：{ $maps }
picture-on-demand-map = { $member } 的 { $method }
picture-on-demand-limits = 无论输出如何，按需生成的热图均不构成提示

# X 线片，图像下方。
picture-scale-faintest = 激活 { $share }
picture-scale-strongest = 最大值
picture-scale-outline = 线条：最大值的一半
picture-members = 集成模型的各成员，类别 { $class } 的输出：
picture-member = { $name } { $output }
picture-member-failed = { $name } 失败
picture-grid = 网格 { $rows }x{ $columns }：每格 = 原图 { $pixels } 像素。显示影响输出的区域，不是病灶轮廓。结果低于阈值不能排除感染。
picture-no-grid = 结果低于阈值不能排除感染。
picture-identity = 仅供研究，未经审核。{ $name } { $version } (sha256 { $digest })：{ $status }
picture-validated = 权重已验证
picture-unvalidated = 权重未经验证

# CT。
picture-ct-title = AI 胸部 CT 肺测量 · { $purpose }
picture-ct-axial = 轴位，自足侧第 { $number } 层，共 { $all } 层
picture-ct-coronal = 冠状位，自前方第 { $number } 行，共 { $all } 行
picture-ct-slice = AI · 第 { $number } 层，共 { $all } 层
picture-ct-legend-right = 轮廓：右肺
picture-ct-legend-left = 轮廓：左肺
picture-ct-legend-dense = 肺内 { $limit } 及以上（含血管）
picture-ct-legend-airway = 轮廓：气管和主支气管，不测量
picture-ct-legend-heat = 轮廓：网络热图达最大值一半及以上
picture-ct-legend-lesion = 虚线轮廓：网络勾画的病灶
picture-ct-series = 测量对象：{ $size } 体素，体素大小 { $spacing } mm{ $thickness }{ $kernel }。
picture-ct-identity = 仅供研究，未经审核。{ $name } { $version }（{ $status }），{ $segmentation }
picture-status-validated = 已验证
picture-status-unvalidated = 未验证
picture-status-untrained = 未训练
