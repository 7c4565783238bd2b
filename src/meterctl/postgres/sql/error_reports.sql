-- name: known
SELECT EXISTS (SELECT FROM meterctl.error_reports WHERE event_id = %(event_id)s) AS known

-- name: resolve
-- The events that each sample may mean: by identifier, or by the identifier within an Idempotency-Key. What was rejected
-- before anything was sent is none of Stripe's, and in a ledger that was adopted another account's events are none of
-- this one's. Several that one name fits are all meant: totals will tell.
SELECT sample.n, event.id, event.meter, event.event_name, event.state,
       (SELECT array_agg(earlier.verdict) FROM meterctl.error_samples AS earlier
        WHERE earlier.meter_event_id = event.id) AS earlier
FROM unnest(%(ns)s::integer[], %(identifiers)s::text[]) AS sample (n, identifier)
JOIN meterctl.meter_events AS event USING (identifier)
WHERE event.livemode = %(livemode)s AND event.account = (SELECT account FROM meterctl.identity)
  AND NOT (event.state = 'rejected' AND event.error_code LIKE 'local:%%')
ORDER BY event.id, sample.n
FOR UPDATE OF event

-- name: hashed
-- An Idempotency-Key that no header can carry went as its hash: looked for among what may have been sent in those days.
SELECT DISTINCT sample.named, event.identifier
FROM meterctl.meter_events AS event
CROSS JOIN LATERAL generate_series(0, event.answers_heard) AS heard (count)
JOIN unnest(%(named)s::text[]) AS sample (named)
    ON sample.named = encode(sha256(convert_to(event.identifier || ':' || heard.count, 'UTF8')), 'hex')
WHERE event.identifier ~ '[^!-~]'
  AND (event.accepted_at BETWEEN %(since)s AND %(until)s
       OR event.state IN ('pending', 'sending', 'in_doubt', 'rejected', 'expired'))

-- name: doubt
-- In doubt since ever: only totals settle it. A run that is sending it writes its answer down in vain.
UPDATE meterctl.meter_events AS event
SET state = 'in_doubt', ever_in_doubt = true, doubt_since = 'epoch', claimed_from = NULL, claimed_at = NULL,
    accepted_at = NULL, settled_by = NULL, late = false, held_reason = NULL, told = false,
    error_code = sample.code, error_message = sample.message
FROM unnest(%(ids)s::bigint[], %(codes)s::text[], %(messages)s::text[]) AS sample (id, code, message)
WHERE event.id = sample.id AND event.state IN ('pending', 'sending', 'in_doubt', 'accepted', 'rejected', 'expired')

-- name: reject
-- A level that Stripe dropped: no total of one minute can tell, and to say it once more would do no harm.
UPDATE meterctl.meter_events AS event
SET state = 'rejected', doubt_since = NULL, claimed_from = NULL, claimed_at = NULL, accepted_at = NULL, settled_by = NULL,
    late = false, held_reason = NULL, told = false, error_code = sample.code, error_message = sample.message
FROM unnest(%(ids)s::bigint[], %(codes)s::text[], %(messages)s::text[]) AS sample (id, code, message)
WHERE event.id = sample.id AND event.state IN ('pending', 'sending', 'in_doubt', 'accepted', 'rejected', 'expired')

-- name: note
INSERT INTO meterctl.error_reports (
    event_id, event_name, error_count, sample_count, validation_start, validation_end, created, noted_at, told)
VALUES (%(event_id)s, %(event_name)s, %(error_count)s, %(sample_count)s, %(validation_start)s, %(validation_end)s,
        %(created)s, %(now)s, %(event_name)s::text IS NULL)

-- name: note_samples
INSERT INTO meterctl.error_samples (event_id, named, code, message, meter_event_id, verdict)
SELECT %(event_id)s, * FROM unnest(
    %(named)s::text[], %(codes)s::text[], %(messages)s::text[], %(meter_event_ids)s::bigint[], %(verdicts)s::text[])
ON CONFLICT DO NOTHING

-- name: open
-- What is open of the reports, by meter: events of ours in doubt, and errors that no sample names while an event that
-- may be meant has not been compared with Stripe's totals since, and found equal. A difference that was found is what
-- the report told of: it stays open until it is put in doubt. Of levels there is no total; what a later one says instead
-- is lost no more. Of the last 35 days: what is older is past correcting.
SELECT 'error_report' AS code, event.event_name, count(*) AS count,
       (array_agg(coalesce(event.source_row_id, event.identifier) ORDER BY event.id))[1:5] AS sample_ids,
       NULL::timestamptz AS since, NULL::timestamptz AS until
FROM meterctl.error_samples AS sample JOIN meterctl.meter_events AS event ON event.id = sample.meter_event_id
WHERE sample.verdict IS NULL AND event.state = 'in_doubt'
GROUP BY event.event_name
UNION ALL
SELECT 'unnamed_errors', report.event_name, report.error_count - report.sample_count, ARRAY[report.event_id],
       date_trunc('minute', min(event.sent_timestamp)), date_trunc('minute', max(event.sent_timestamp)) + interval '1 minute'
FROM meterctl.error_reports AS report
CROSS JOIN LATERAL (
    -- OFFSET keeps this a look into the index of `accepted_at` for each report, where a join would read the whole ledger.
    SELECT event.customer, event.sent_timestamp FROM meterctl.meter_events AS event
    WHERE event.event_name = report.event_name AND event.state = 'accepted'
      AND event.accepted_at BETWEEN report.validation_start - %(before)s AND report.validation_end + %(after)s
      AND (event.account, event.livemode) = (SELECT account, livemode FROM meterctl.identity)
    OFFSET 0
) AS event
WHERE report.error_count > report.sample_count AND report.created >= %(shown_since)s
  AND NOT EXISTS (
      SELECT FROM meterctl.reconciliations AS proof
      WHERE proof.event_name = report.event_name AND proof.customer = event.customer
        AND proof.range_start <= event.sent_timestamp AND proof.range_end > event.sent_timestamp
        AND proof.read_at >= report.created
        AND NOT EXISTS (
            SELECT FROM jsonb_to_recordset(proof.differences) AS difference (start timestamptz, "end" timestamptz)
            WHERE difference.start <= event.sent_timestamp AND difference."end" > event.sent_timestamp))
  AND NOT (report.event_name = ANY (%(levels)s) AND EXISTS (
      SELECT FROM meterctl.meter_events AS later
      WHERE later.event_name = report.event_name AND later.customer = event.customer AND later.window_start IS NOT NULL
        AND later.sent_timestamp > event.sent_timestamp AND later.state = 'accepted'))
GROUP BY report.event_id
ORDER BY 1, 2

-- name: of_event
-- The report of a Stripe event, sample by sample.
SELECT report.event_name, report.error_count, report.validation_start, report.validation_end, sample.named, sample.code,
       sample.message, sample.verdict, sample.meter_event_id, event.state
FROM meterctl.error_reports AS report
LEFT JOIN meterctl.error_samples AS sample USING (event_id)
LEFT JOIN meterctl.meter_events AS event ON event.id = sample.meter_event_id
WHERE report.event_id = %(event_id)s
ORDER BY sample.id

-- name: reported_lately
-- Whether event `e` is in doubt because of a report that there was little time to settle.
EXISTS (SELECT FROM meterctl.error_samples AS sample JOIN meterctl.error_reports AS report USING (event_id)
        WHERE sample.meter_event_id = e.id AND sample.verdict IS NULL AND report.noted_at > %(undecided_before)s)
