"""What tests of this package, and of destinations in other packages, are made of."""
