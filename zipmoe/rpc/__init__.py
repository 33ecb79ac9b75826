"""What every ZipMoE process needs around its own work: server boot, status mapping, client channels, metrics, logs."""
