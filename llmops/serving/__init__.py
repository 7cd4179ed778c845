"""The gateway: public names in front of one engine with many adapters, moved by what the ledger says."""
