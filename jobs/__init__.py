"""What people type: one file a job, thin over pipeline/."""
