"""Release records: what was deployed, by whom, from what, with which evidence; a hash chain for each name."""
