"""The one runtime behind every command: plan, load, run, save."""
