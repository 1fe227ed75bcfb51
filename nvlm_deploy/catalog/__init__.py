"""The catalogs of recipes, calibration sets and targets, mounted here from the top-level folders."""
