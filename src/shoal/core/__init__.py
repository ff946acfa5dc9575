"""What every floor above stands on: errors, recipes, run directories, files, seeds."""
