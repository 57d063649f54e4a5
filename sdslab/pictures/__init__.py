"""Images: read, compared, described, between colour spaces."""
