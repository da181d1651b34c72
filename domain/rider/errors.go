package rider

import "tomato/domain"

// The refusal codes of a rider.
const (
	CodeBusy        domain.Code = "rider_busy"
	CodeNotVerified domain.Code = "rider_not_verified"
	CodeOffline     domain.Code = "rider_offline"
	CodeSuspended   domain.Code = "rider_suspended"
)
