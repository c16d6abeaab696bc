# 图像中的文字。数值已带单位。

picture-untrained = 未经训练的测试权重 - 无临床意义 (UNTRAINED TEST WEIGHTS - NO CLINICAL MEANING)
picture-no-value = 无数值

# X 线片，图像上方。
picture-title = AI 热图 · { $class } { $output } · { $purpose }
picture-no-class = 目标类别
picture-no-output = 无输出
picture-model-output = 模型输出，{ $calibration }，{ $position }（{ $threshold }）。
picture-in-grey-zone = 输出位于灰区（{ $low } 至低于 { $high }）：不作任何判定
picture-not-localised = 无定位：输出低于阈值 { $threshold }
picture-no-region = 无定位：没有区域使输出升高
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
picture-identity = 仅供研究，未经审核。{ $name } { $version } (sha256 { $digest })：{ $status }
picture-validated = 权重已验证
picture-unvalidated = 权重未经验证

# 网络的输出。
picture-calibrated = 已校准
picture-uncalibrated = 未校准
picture-at-or-above = 达到或高于工作阈值
picture-below = 低于工作阈值
picture-not-comparable = 无法与工作阈值比较
picture-outputs = 模型输出（{ $calibration }）：{ $outputs }。
picture-operating-point = 类别 { $class } 模型输出的工作阈值为 { $threshold }{ $zone }；输出{ $position }。{ $decision }
picture-grey-zone = （灰区 { $low } 至低于 { $high }）
picture-all-members = 各成员对类别 { $class } 的输出：{ $outputs }；最大与最小之差 { $spread }。
picture-decision-present = 按阈值判定：存在。
picture-decision-absent = 按阈值判定：不存在。
picture-decision-undetermined = 判定：未定。
picture-decision-because = 判定：未定，原因：{ $reasons }。
picture-decision-untrained = 不作判定（未定）：权重未经训练。
picture-decision-unvalidated = 不作判定（未定）：权重未经验证。
picture-because-grey-zone = 输出位于灰区（{ $low } 至低于 { $high }）
picture-because-members = { $all } 个成员中有 { $failed } 个失败

# CT。
picture-ct-title = AI 胸部 CT 肺测量 · { $purpose }
picture-ct-axial = 轴位，自足侧第 { $number } 层，共 { $all } 层
picture-ct-coronal = 冠状位，自前方第 { $number } 行，共 { $all } 行
picture-ct-slice = AI · 第 { $number } 层，共 { $all } 层
picture-ct-legend-right = 轮廓：右肺
picture-ct-legend-left = 轮廓：左肺
picture-ct-legend-opacity = 肺内 { $limit } 及以上（含血管）
picture-ct-legend-consolidation = 肺内 { $limit } 及以上（含血管）
picture-ct-legend-airway = 轮廓：气管和主支气管，不测量
picture-ct-legend-heat = 轮廓：网络热图达最大值一半及以上
picture-ct-legend-lesion = 虚线轮廓：网络勾画的病灶
picture-ct-series = 测量对象：{ $size } 体素，体素大小 { $spacing } mm{ $thickness }{ $kernel }。
picture-ct-thickness = ，层厚 { $thickness } mm
picture-ct-kernel = ，卷积核 { $kernel }
picture-ct-right-lung = 右肺
picture-ct-left-lung = 左肺
picture-ct-lung = { $lung }：{ $volume } ml，平均 { $mean }，第 15 百分位 { $percentile }；-700 HU 及以上 { $opacity }，-100 HU 及以上 { $consolidation }，低于 -950 HU { $emphysema }。
picture-ct-upper-third = 上三分之一
picture-ct-middle-third = 中三分之一
picture-ct-lower-third = 下三分之一
picture-ct-third = { $lung }，{ $third }：{ $volume } ml，平均 { $mean }；-700 HU 及以上 { $opacity }，-100 HU 及以上 { $consolidation }。
picture-ct-scan = { $outputs }{ $operating_point }{ $members }网络读取 { $slices } 层，{ $aggregation }。{ $keys }{ $localisation }
picture-ct-no-key-slice = 没有层面支持类别 { $class }。
picture-ct-key-slices = 对类别 { $class } 贡献最大的层面：{ $slices }。
picture-ct-key-slice = 自足侧第 { $number } 层
picture-ct-key-output = ，输出 { $output }
picture-ct-key-heat = ，热图有 { $share } 位于肺内
picture-ct-localised = 有定位：输出达到或高于工作阈值。
picture-ct-not-localised = 无定位：输出低于工作阈值，热图不构成提示。
picture-ct-outlined = 网络勾画，类别 { $class }：共 { $volume } ml；{ $lungs }。
picture-ct-in-right-lung = 右肺内 { $volume } ml（占右肺 { $share }）
picture-ct-in-left-lung = 左肺内 { $volume } ml（占左肺 { $share }）
picture-ct-rule = 规则：{ $rule }。
picture-ct-rule-outcome = { $run }读取的 { $seen } 层中有 { $with_lesion } 层的病灶达到该大小，其中连续最多 { $longest } 层。{ $decision }
picture-ct-rule-satisfied = 首次满足规则的是自足侧第 { $first } 至 { $last } 层共 { $slices } 层，图像的{ $quadrant }象限。
picture-ct-rule-not-satisfied = 不满足规则：没有这样的连续层面。
picture-ct-right-front = 右前
picture-ct-left-front = 左前
picture-ct-right-back = 右后
picture-ct-left-back = 左后
picture-ct-by-rule-present = 按规则判定：存在。
picture-ct-by-rule-absent = 按规则判定：不存在。
picture-ct-member-failed = 成员 { $name } 失败：{ $reason }。
picture-ct-not-judged = 该组合的网络未评估此次扫描，原因：{ $words }（{ $reason }）。
picture-ct-limits = 密度分级只说明体素有多致密，不说明它是什么：血管、气道壁、吸气深度、重力、对比剂、卷积核和层厚都会影响它。
picture-ct-identity = 仅供研究，未经审核。{ $name } { $version }（{ $status }），{ $segmentation }
picture-ct-threshold = { $method }，阈值 { $threshold }
picture-status-validated = 已验证
picture-status-unvalidated = 未验证
picture-status-untrained = 未训练
