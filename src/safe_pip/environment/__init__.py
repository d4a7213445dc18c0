"""One environment: which locks each access to it takes (`environment`), and one command's change of it (`change`)."""
