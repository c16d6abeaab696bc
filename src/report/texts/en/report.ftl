# What reports say, one message a line. Numbers come formatted, with their unit. { $words }, { $rule }, { $why },
# { $aggregation }, { $cited } and { $method } are facts of the run, which are English in every language; { $reason }
# is one of the messages "reason-…" below; { $id } is its machine-readable identifier.

# The language itself, in English: it stands in a coded concept.
language-name = English

not-for-diagnostic-use = NOT FOR DIAGNOSTIC USE
untrained-notice = UNTRAINED TEST WEIGHTS - NO CLINICAL MEANING

# Series Descriptions: 64 characters at most with the notice.
report-series = AI result - { $notice }
report-series-text = AI result (text) - { $notice }
report-series-not-analysed = AI not analysed - { $notice }

# How sentences and lists are joined.
join-sentences = { " " }
join-list = { ", " }
join-clauses = { "; " }
notice-first = { $notice }. { $words }
full-stop = { $words }.
named = { $name }:
of-image = { $image } - { $words }
image-name = Image { $number }
no-value = no value

# The lines that a report ends with.
disclaimer-untrained = { $notice }. The weights are random numbers; the outputs mean nothing.
disclaimer-research = Investigational / research use only. Not for diagnostic use. Not cleared or CE-marked.
disclaimer-unreviewed = Software output that no physician has reviewed; not for patient management.
disclaimer-score = A score is the model output for the pattern associated with its class in the training data; it does not say how likely the patient has the disease.
disclaimer-not-specific = Does not distinguish other viral pneumonia; a result below threshold does not exclude infection; correlate clinically and with RT-PCR.
disclaimer-heat-map = Heat map: shows regions that influenced the score (on the grid named), not lesion outlines.
performance-no-weights = No trained weights are used. The method is not validated.
performance-no-weights-cited = No trained weights are used. { $cited }. The method is not validated.
performance-none = No performance of a reference publication is cited.
performance-cited = Reference publication: { $cited }.
performance-not-validated = { $performance } These weights: not validated.

# Outputs, threshold, decision.
calibrated = calibrated
uncalibrated = uncalibrated
class-output = { $class } { $output }
outputs = Model output ({ $calibration }): { $outputs }.
class-finding = Model output for class { $class }, ensemble ({ $calibration }): { $output }; members: { $members }.
ensemble-meaning = Model output for class { $class }, ensemble ({ $calibration })
member-meaning = Model output for class { $class }, member { $member }
threshold-meaning = Operating threshold of the ensemble
at-or-above-threshold = at or above the operating threshold
below-threshold = below the operating threshold
not-comparable-with-threshold = not comparable with the operating threshold
operating-point = Operating threshold { $threshold } on the model output for class { $class }; the output is { $where }. { $decision }
operating-point-grey = Operating threshold { $threshold } (grey zone { $zone }) on the model output for class { $class }; the output is { $where }. { $decision }
grey-zone = { $low } to below { $high }
why-grey-zone = the output lies in the grey zone, { $zone }
why-members-failed = { $failed } of { $all } members failed
why-nothing-said = the networks give every class the same output
decision-undetermined-because = Decision: undetermined, because { $why }.
decision-undetermined = Decision: undetermined.
decision-present = Decision at the threshold: present.
decision-absent = Decision at the threshold: absent.
rule-decision-present = Decision by the rule: present.
rule-decision-absent = Decision by the rule: absent.
withheld-untrained = Decision withheld (undetermined): these weights are not trained.
withheld-unvalidated = Decision withheld (undetermined): these weights are not validated.
members = Members for class { $class }: { $outputs }; largest minus smallest { $spread }.
member-output = { $member } { $output }
failed = failed
member-name = Member { $number }/{ $all } { $member }
member-failure = Member { $member } failed: { $words }
member-without-output = Member { $member } failed: it gave no output for this class
not-a-finite-number = { $concept }: no value, the output is not a finite number

# Heat maps.
heat-map-method = Heat map by { $method }, grid { $rows } x { $columns }, maximum activation { $maximum }; shows regions that influenced the score, not lesion outlines.
heat-map-none = There is no heat map: the networks that answered give none.
heat-threshold-meaning = Relative to the maximum activation
heat-no-lung = No value: this lung field was not found
lung-heat = Heat map at half its maximum or more: { $right } of the right lung field, { $left } of the left.
heat-in-lungs = { $share } of the heat lies in the lungs.
heat-elsewhere = Less than half of the heat lies in the lungs: the output may rest on something else.
localised = Localised: the output is at or above the operating threshold
not-localised = No localisation: the output is below the operating threshold, the map is not an indication
not-localised-without-map = No localisation: there is no map

# What names a measurement group: unique in the document.
track-ensemble = Ensemble: { $class }
track-member = Member { $number }/{ $all } { $member } { $version }: { $class }
track-heat-right = Heat map extent, right lung
track-heat-left = Heat map extent, left lung
track-heat-in-lungs = Heat in the lungs
track-similar-case = Similar case { $number }
track-prior-image = Prior image { $number }
track-key-slice = Key slice { $number }
track-lesions = Lesions
track-lesions-right = Lesions, right lung
track-lesions-left = Lesions, left lung
track-third = { $lung }, { $third } third

# Similar cases.
similar-cases = { $library }; { $found }; { $priors }; embedding { $method }. { $caution }
similar-no-library = No reference library was searched
similar-library = Reference library of { $count } cases, sha256:{ $digest }
similar-none = no similar case: { $words }
similar-found = the { $count } nearest of other patients are named
similar-priors = { $count } image(s) of earlier studies of this patient
similar-case = Reference library case { $case } of another patient: label { $class }, cohort { $cohort }, distance { $distance }. { $caution }
prior-image = Same patient, study of { $date } (Study Instance UID { $study }), distance { $distance }. { $caution }
unknown-date = unknown date
caution-untrained = The weights are untrained: these distances mean nothing.
caution = Similar by network embedding; the labels of similar cases are not evidence for this patient.

# Input checks, what was left out, what was not analysed.
gate = { $gate }: { $verdict }; { $words }
gate-not-passed = { $gate }: { $verdict } ({ $id }); { $words }
gate-passed = passed
gate-passed-reported = passed, reported only
gate-failed-enforced = failed, enforced
gate-failed-reported = failed, reported only
excluded = not analysed: { $words } ({ $id })
not-analysed = AI did not analyse this study: { $words } ({ $id }).
images-not-analysed = Images not analysed: { $count }.
conclusion = AI:

# (0040,A492): 64 characters at most.
members-runs-failed = { $failed } of { $all } ensemble member runs failed
measured-not-judged = Measured; the networks did not judge the scan
processing-failed = Processing failed
input-rejected = Input rejected

contribution-used = AI inference: { $architecture } { $version } (sha256:{ $digest })
contribution-unused = Assigned to this study, no output used: { $architecture } { $version } (sha256:{ $digest })

# Chest CT.
right-lung = Right lung
left-lung = Left lung
third-upper = upper
third-middle = middle
third-lower = lower
third-superior = superior
third-inferior = inferior
quadrant-right-front = right front
quadrant-left-front = left front
quadrant-right-back = right back
quadrant-left-back = left back
ct-conclusion = AI chest CT lung measurement.
ct-series = Measured series { $series }: { $size } voxels of { $spacing } mm{ $thickness }{ $kernel }; chosen: { $why }.
ct-thickness = , slices { $millimetres } mm thick
ct-kernel = , kernel { $kernel }
ct-excluded-series = Series { $series } ({ $modality }, { $count } image(s)) not measured: { $words } ({ $id })
ct-lung = { $lung }: { $volume }, mean { $mean }, 15th percentile { $percentile }; -700 HU and above { $opacity }, -100 HU and above { $consolidation }, below -950 HU { $emphysema }.
ct-third = { $third } third: { $volume }, mean { $mean }; -700 HU and above { $opacity }, -100 HU and above { $consolidation }
ct-third-of-lung = { $lung }, { $third }
ct-limits = Density bands say how dense a voxel is, not what it is: vessels, airway walls, breathing depth, gravity, contrast medium, kernel and slice thickness change them.
ct-technique-threshold = Lungs by threshold and connected components without trained weights (after Hu, Hoffman, Reinhardt, IEEE TMI 2001;20:490-498); trachea and main bronchi taken out, vessels within the lungs included. Consolidated lobes, effusions and masses that reach the pleura over more than about 2 cm are not found and make a lung measure too small.
ct-technique-network = Lungs by a network that looks at slices (after Hofmanninger et al., Eur Radiol Exp 2020;4:50), its largest piece on each side, vessels within the lungs included.
ct-band-1 = Share of the volume: emphysema-like, below -950 HU
ct-band-2 = Share of the volume: well aerated, -950 to -700 HU
ct-band-3 = Share of the volume: ground-glass-like, -700 to -500 HU
ct-band-4 = Share of the volume: poorly aerated, -500 to -100 HU
ct-band-5 = Share of the volume: consolidation-like, -100 HU and above
ct-opacity-meaning = Share of the volume at -700 HU and above, vessels included
ct-slices-seen = { $count } slice(s) seen, { $aggregation }.
ct-key-slices = Slices that speak most for class { $class }: { $slices }.
ct-no-key-slice = No slice speaks for class { $class }.
ct-slices-not-named = The networks do not say which slices speak for class { $class }.
ct-key-slice = slice { $slice } from the feet{ $output }{ $heat }
ct-key-slice-output = , output { $output }
ct-key-slice-heat = , { $share } of its heat in the lungs
ct-key-slice-meaning = Mean output of the members for this slice
ct-slice-heat = Heat over slices shows regions that influenced the output, not lesion outlines.
ct-lesions = Outlined by networks, class { $class }: { $volume } in all; { $lungs }.
ct-lesions-right = { $volume } in the right lung ({ $share } of it)
ct-lesions-left = { $volume } in the left lung ({ $share } of it)
ct-lesion-rule = Rule: { $rule }.
ct-lesion-slices = { $with } of { $seen } slice(s) seen hold that much lesion, at most { $longest } of them in a run.
ct-lesion-limits = Lesions are what networks outlined, not what was seen by a reader; a slice that the networks did not see counts as one without lesion.
ct-rule-satisfied = The rule is satisfied first by { $slices } slice(s), { $first } to { $last } from the feet, { $quadrant } quadrant of the image.
ct-rule-not-satisfied = The rule is not satisfied: there is no such run of slices.
ct-not-judged = The networks of the bundle did not judge the scan because { $words } ({ $id }).

# Why something was not analysed. English says the facts of the run instead.
reason-input-no-suitable-image = there is no image of a kind that is analysed
reason-input-unsupported-image = the image is of a kind that is not supported
reason-input-undecodable = the image cannot be decoded
reason-input-view-not-frontal = the view is not frontal
reason-input-age-out-of-scope = the age is outside the scope of the models
reason-quality-lung-mask = the lung fields are implausible
reason-quality-image = the image quality is insufficient
reason-input-out-of-distribution = the image is unlike those that the models were trained with
reason-ensemble-disagreement = the members of the ensemble contradict one another
reason-input-ct-localizer = the image is a localizer
reason-input-ct-geometry-missing = position, orientation or spacing of the images is not stated
reason-input-ct-mixed-geometry = the images differ in their geometry
reason-input-ct-not-axial = the images are not axial
reason-input-ct-gantry-tilt = the gantry was tilted
reason-input-ct-slice-gap = slices are missing
reason-input-ct-duplicate-position = different images lie at the same position
reason-input-ct-identical-image = the same image is there twice
reason-input-ct-uneven-spacing = the distances between slices vary
reason-input-ct-too-few-slices = there are too few slices
reason-input-ct-other-series-chosen = another series was measured
reason-processing-failure = the analysis failed for a technical reason
