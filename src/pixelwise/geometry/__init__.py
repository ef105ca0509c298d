"""How far a network sees: derived from its operators (`reach`, `tracing`), or found by experiment (`probing`)."""
