"""The process that reads journals and exports."""
