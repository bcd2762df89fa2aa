"""The search for a better recipe: `search` makes trials, `study` keeps them on disk, `trials` says what was found."""
