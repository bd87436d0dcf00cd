"""The system that every part may use: files and locks, processes, downloads and devices."""
