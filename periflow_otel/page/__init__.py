"""A view as something to look at: the page and its parts, a report in one file, words for a terminal."""
