"""The demo: a whole pipeline on one machine, with nothing to install beside the package itself."""
