"""Pictures and pages of what was measured or found; nothing here computes what it shows."""
