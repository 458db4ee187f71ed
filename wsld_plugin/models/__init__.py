"""Networks that mmpretrain lacks, and the table of those we train."""
