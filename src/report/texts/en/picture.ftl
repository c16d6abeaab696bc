# What stands in pictures. Numbers come formatted, with their unit.

picture-untrained = UNTRAINED TEST WEIGHTS - NO CLINICAL MEANING

# Radiographs, above the film.
picture-title = AI heat map · { $class } { $output } · { $purpose }
picture-no-class = target class
picture-no-output = no output
picture-model-output = Model output, { $calibration }, { $position } ({ $threshold }).
picture-in-grey-zone = the output lies in the grey zone, { $zone }: it decides nothing
picture-not-localised = no localisation: the output is below the threshold of { $threshold }
picture-no-map = no map: the networks that answered give none
picture-no-region = no localisation: no region raised the output
picture-heat-elsewhere = { $share } of the heat lies in the lungs, less than half: the output may rest on something else
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
picture-no-grid = A result below the threshold does not exclude infection.
picture-identity = RESEARCH, UNVERIFIED. { $name } { $version } (sha256 { $digest }): { $status }
picture-validated = validated weights
picture-unvalidated = these weights are not validated

# CT.
picture-ct-title = AI chest CT lung measurement · { $purpose }
picture-ct-axial = axial, slice { $number } of { $all } from the feet
picture-ct-coronal = coronal, row { $number } of { $all } from the front
picture-ct-slice = AI · slice { $number } of { $all }
picture-ct-legend-right = outline: right lung
picture-ct-legend-left = outline: left lung
picture-ct-legend-dense = in a lung, { $limit } and above (vessels too)
picture-ct-legend-airway = outline: trachea and main bronchi, not measured
picture-ct-legend-heat = outline: heat of the networks, half its maximum and above
picture-ct-legend-lesion = dashed outline: lesion by the networks
picture-ct-series = Measured: { $size } voxels of { $spacing } mm{ $thickness }{ $kernel }.
picture-ct-identity = RESEARCH, UNVERIFIED. { $name } { $version } ({ $status }), { $segmentation }
picture-status-validated = validated
picture-status-unvalidated = unvalidated
picture-status-untrained = untrained
