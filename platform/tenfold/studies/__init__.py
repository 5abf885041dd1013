"""Studies: what is swept, the records of trials, tables and figures. ``tenfold.studies.run`` runs them on Ray Tune."""
