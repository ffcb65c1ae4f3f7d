"""Jobs: the commands that people type, one file each, thin over pipeline/."""
