# What stands in pictures. Numbers come formatted, with their unit.

picture-untrained = UNTRAINED TEST WEIGHTS - NO CLINICAL MEANING
picture-no-value = no value

# Radiographs, above the film.
picture-title = AI heat map · { $class } { $output } · { $purpose }
picture-no-class = target class
picture-no-output = no output
picture-model-output = Model output, { $calibration }, { $position } ({ $threshold }).
picture-in-grey-zone = the output lies in the grey zone, { $low } to below { $high }: it decides nothing
picture-not-localised = no localisation: the output is below the threshold of { $threshold }
picture-no-region = no localisation: no region raised the output
picture-on-demand = made on demand: { $maps }
picture-on-demand-map = { $method } of { $member }
picture-on-demand-limits = a map made on demand is no indication, whatever the output is

# Radiographs, below the film.
picture-scale-faintest = activation { $share }
picture-scale-strongest = maximum
picture-scale-outline = line: half the maximum
picture-members = Members of the ensemble, output for class { $class }:
picture-member = { $name } { $output }
picture-member-failed = { $name } failed
picture-grid = grid { $rows }x{ $columns }: one cell = { $pixels } px of the source image. Shows regions that influenced the output, not lesion outlines. A result below the threshold does not exclude infection.
picture-identity = RESEARCH, UNVERIFIED. { $name } { $version } (sha256 { $digest }): { $status }
picture-validated = validated weights
picture-unvalidated = these weights are not validated

# What networks said.
picture-calibrated = calibrated
picture-uncalibrated = uncalibrated
picture-at-or-above = at or above the operating threshold
picture-below = below the operating threshold
picture-not-comparable = not comparable with the operating threshold
picture-outputs = Model output ({ $calibration }): { $outputs }.
picture-operating-point = Operating threshold { $threshold }{ $zone } on the model output for class { $class }; the output is { $position }. { $decision }
picture-grey-zone = { " " }(grey zone { $low } to below { $high })
picture-all-members = Members for class { $class }: { $outputs }; largest minus smallest { $spread }.
picture-decision-present = Decision at the threshold: present.
picture-decision-absent = Decision at the threshold: absent.
picture-decision-undetermined = Decision: undetermined.
picture-decision-because = Decision: undetermined, because { $reasons }.
picture-decision-untrained = Decision withheld (undetermined): these weights are not trained.
picture-decision-unvalidated = Decision withheld (undetermined): these weights are not validated.
picture-because-grey-zone = the output lies in the grey zone, { $low } to below { $high }
picture-because-members = { $failed } of { $all } members failed

# CT.
picture-ct-title = AI chest CT lung measurement · { $purpose }
picture-ct-axial = axial, slice { $number } of { $all } from the feet
picture-ct-coronal = coronal, row { $number } of { $all } from the front
picture-ct-slice = AI · slice { $number } of { $all }
picture-ct-legend-right = outline: right lung
picture-ct-legend-left = outline: left lung
picture-ct-legend-opacity = in a lung, { $limit } and above (vessels too)
picture-ct-legend-consolidation = in a lung, { $limit } and above (vessels too)
picture-ct-legend-airway = outline: trachea and main bronchi, not measured
picture-ct-legend-heat = outline: heat of the networks, half its maximum and above
picture-ct-legend-lesion = dashed outline: lesion by the networks
picture-ct-series = Measured: { $size } voxels of { $spacing } mm{ $thickness }{ $kernel }.
picture-ct-thickness = , slices { $thickness } mm thick
picture-ct-kernel = , kernel { $kernel }
picture-ct-right-lung = Right lung
picture-ct-left-lung = Left lung
picture-ct-lung = { $lung }: { $volume } ml, mean { $mean }, 15th percentile { $percentile }; -700 HU and above { $opacity }, -100 HU and above { $consolidation }, below -950 HU { $emphysema }.
picture-ct-upper-third = upper third
picture-ct-middle-third = middle third
picture-ct-lower-third = lower third
picture-ct-third = { $lung }, { $third }: { $volume } ml, mean { $mean }; -700 HU and above { $opacity }, -100 HU and above { $consolidation }.
picture-ct-scan = { $outputs } { $operating_point } { $members } { $slices } slice(s) seen, { $aggregation }. { $keys } { $localisation }
picture-ct-no-key-slice = No slice speaks for class { $class }.
picture-ct-key-slices = Slices that speak most for class { $class }: { $slices }.
picture-ct-key-slice = slice { $number } from the feet
picture-ct-key-output = , output { $output }
picture-ct-key-heat = , { $share } of its heat in the lungs
picture-ct-localised = Localised: the output is at or above the operating threshold.
picture-ct-not-localised = No localisation: the output is below the operating threshold, the map is not an indication.
picture-ct-outlined = Outlined by networks, class { $class }: { $volume } ml in all; { $lungs }.
picture-ct-in-right-lung = { $volume } ml in the right lung ({ $share } of it)
picture-ct-in-left-lung = { $volume } ml in the left lung ({ $share } of it)
picture-ct-rule = Rule: { $rule }.
picture-ct-rule-outcome = { $run } { $with_lesion } of { $seen } slice(s) seen hold that much lesion, at most { $longest } of them in a run. { $decision }
picture-ct-rule-satisfied = The rule is satisfied first by { $slices } slice(s), { $first } to { $last } from the feet, { $quadrant } quadrant of the image.
picture-ct-rule-not-satisfied = The rule is not satisfied: there is no such run of slices.
picture-ct-right-front = right front
picture-ct-left-front = left front
picture-ct-right-back = right back
picture-ct-left-back = left back
picture-ct-by-rule-present = Decision by the rule: present.
picture-ct-by-rule-absent = Decision by the rule: absent.
picture-ct-member-failed = Member { $name } failed: { $reason }.
picture-ct-not-judged = The networks of the bundle did not judge the scan because { $words } ({ $reason }).
picture-ct-limits = Density bands say how dense a voxel is, not what it is: vessels, airway walls, breathing depth, gravity, contrast medium, kernel and slice thickness change them.
picture-ct-identity = RESEARCH, UNVERIFIED. { $name } { $version } ({ $status }), { $segmentation }
picture-ct-threshold = { $method }, threshold { $threshold }
picture-status-validated = validated
picture-status-unvalidated = unvalidated
picture-status-untrained = untrained
