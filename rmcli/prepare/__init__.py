"""`rmcli prepare`: rows of any source in, packed rows on disk out. job -> units -> fate -> fill -> show."""
