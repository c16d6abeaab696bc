# What reports say. Numbers come formatted, with their unit.

not-for-diagnostic-use = NOT FOR DIAGNOSTIC USE
report-series = AI result - NOT FOR DIAGNOSTIC USE
