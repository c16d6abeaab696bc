# Segmentations, presentation states and key objects. Series Descriptions have 64 characters at most with the notice.
segmentation-series = AI segmentation - { $notice }
segmentation-description = AI segmentation. { $notice }
# A density is no finding.
segment-density = How dense the voxels are, not what they are: vessels and airway walls are among them.

outlines-series = AI lung outlines - { $notice }
outlines-text = AI lung outlines. { $notice }

key-objects-series = AI key images - { $notice }
key-objects-output = Model output for class { $class }: { $output }, at or above the operating threshold of { $threshold }
key-objects-rule = What networks outlined as { $class } satisfies the rule of the bundle: { $rule }
key-objects-text = { $findings }. { $notice }
