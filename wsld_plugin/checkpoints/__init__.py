"""Files and URLs: extract, load, convert."""
