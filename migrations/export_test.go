package migrations

// Apply is Core with the files of a test.
var Apply = apply
