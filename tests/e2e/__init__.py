"""Whole pods as their users run them: real processes, real JupyterLab, a real S3 server."""
