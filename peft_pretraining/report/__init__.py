"""The parts of a report: runs read from their folders, compared, drawn, and put on a page."""
