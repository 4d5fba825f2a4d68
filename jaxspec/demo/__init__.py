"""Local web page that shows images while they are generated."""
