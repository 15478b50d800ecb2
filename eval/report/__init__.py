"""From the folder of a run to tables, pictures and pages: `p2e eval report RUN`."""
