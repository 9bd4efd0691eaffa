"""The page that people see: plain files for a browser, and the paths that they are served at."""
