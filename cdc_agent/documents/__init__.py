"""From a row to a document to chunks. Pure: no socket, no clock, no model."""
