"""Tables, pictures and pages about runs. They need the extra `analysis`."""
