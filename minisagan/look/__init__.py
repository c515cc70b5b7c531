"""What a person looks at: pictures, charts, maps of attention, ways between latents, the report of a run."""
