-- name: identifier
-- A template's text as an identifier: as it is, or a readable prefix and a hash. core/identifier.py does the same.
CASE WHEN length({text}) <= %(identifier_length_max)s THEN {text}
     ELSE left({text}, %(hashed_prefix_length)s) || '-' || encode(sha256(convert_to({text}, 'UTF8')), 'hex') END

-- name: period_end
-- End of the billing period that an instant lies in. A subscription's end that lies before it is a former period's, for the
-- application has not written down the new one: the end is unknown then.
CASE WHEN {instant} < {subscription}.period_start THEN {subscription}.period_start
     WHEN {instant} < {subscription}.period_end THEN {subscription}.period_end END

-- name: customer_problem
-- Why there is nobody to bill for a line of `page` that was joined with `chosen`; NULL: there is.
CASE WHEN chosen.n IS NULL THEN 'no_subscription'
     WHEN chosen.ambiguous THEN 'local:ambiguous_customer'
     WHEN chosen.customer IS NULL THEN 'local:no_customer_id'
     WHEN length(chosen.customer) > 100 THEN 'local:customer_id_too_long' END
