package migrations

// Apply is Core for files of a test's own.
var Apply = apply
