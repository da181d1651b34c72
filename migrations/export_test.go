package migrations

// Apply is Core with the files of a test.
var Apply = apply

// ApplyWithin is CoreWithin with the files of a test.
var ApplyWithin = applyWithin

// Files has the files of this package.
var Files = files

// SetupLock is the lock that prepare takes.
const SetupLock = setupLock
