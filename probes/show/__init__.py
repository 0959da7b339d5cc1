"""What people see: tables, screens, histograms, Perfetto traces."""
