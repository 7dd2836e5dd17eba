"""Reports of commands: HTML pages that hold everything they show, for any browser and theme, offline."""
