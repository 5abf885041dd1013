"""Studies: what is swept, the records of trials, tables and figures. ``tenfold.sweep`` runs them on Ray Tune."""
