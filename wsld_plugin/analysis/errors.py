"""What is told in one line."""


class AnalysisError(ValueError):
    """A config, checkpoint or work dir cannot be analyzed as asked."""
