"""Programs around the package: the bundled model and looking at stories."""
