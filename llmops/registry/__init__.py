"""What is known about models: bases, adapters with their lineage, releases and the champion of each public name."""
