"""The sentence tasks of GLUE: read, prepared, learned and scored. Source: Wang et al. 2019."""
