"""The page ``regiondh serve``, and the REST interface below it, over the search service."""
