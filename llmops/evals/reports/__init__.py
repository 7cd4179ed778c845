"""What a session and a decision leave for people and for CI: comparisons as text, JUnit XML, annotations, Parquet."""
